"""What verification is made of: a file for each part of a run that it looks at."""
