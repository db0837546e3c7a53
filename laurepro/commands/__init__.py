"""One file a command. Only click is imported at the top of each; what a command needs, it imports when it runs."""
