"""What a model family calls its weights: one file a family. (Chapter 1)"""
