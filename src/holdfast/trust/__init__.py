"""When can the number be trusted? Checks that look for misled attacks, and what is done then."""
