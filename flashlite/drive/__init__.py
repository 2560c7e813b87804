"""The drive: direct reads of records, in parallel, and what they cost. (Chapter 0)"""
