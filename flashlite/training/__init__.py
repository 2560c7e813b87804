"""What is trained, and the models and texts that are made for it. (Chapter 2)"""
