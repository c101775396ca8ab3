"""Work on other processes and machines: what goes along, which folders they see, where a run goes on."""
