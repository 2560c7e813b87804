"""What a model family calls its weights and what its neurons compute: one file a family. (Chapter 1)"""
