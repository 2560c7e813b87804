"""A transformers model whose FFNs stream: the ladder, stage by stage. (Chapters 1 to 6, and 8)"""
