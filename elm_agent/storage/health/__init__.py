"""What ``doctor`` looks at and mends."""
