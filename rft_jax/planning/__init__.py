"""What an experiment needs on given devices, and how long it takes there, before it is run."""
