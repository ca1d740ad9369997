"""What is looked at before any work: parameters against the files and packages of this machine."""
