"""The doors: what other frameworks do with a verdict. One file a door."""
