"""The contest, chapter 6's capstone: the fewest bytes in the same memory, by a policy and by an order on flash."""
