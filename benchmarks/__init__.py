"""Speed side by side with other packages on the same work; README.md says how."""
