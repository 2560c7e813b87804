"""What is known of a student's work beside its points, and where teachers collect it."""
