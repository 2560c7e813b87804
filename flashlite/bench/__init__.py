"""The ladder measured, beside what it must cost and what people use today. (Chapters 0, 6, 7 and 8)"""
