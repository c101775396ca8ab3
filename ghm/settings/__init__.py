"""What a run is to be: from the words of a command line to the parts it is made of, checked before it starts."""
