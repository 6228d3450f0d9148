"""Other projects' command lines and files, translated into the plain configuration. Only the CLI imports it."""
