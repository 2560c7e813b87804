"""The model on flash: checkpoints in, stores out, neurons back into rows of memory. (Chapters 1 and 4)"""
