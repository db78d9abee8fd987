"""What a page over a bank needs to know of many rows at once, read in bounded pieces. Changes nothing."""
