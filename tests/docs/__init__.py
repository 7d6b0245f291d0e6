"""The parts of the documentation that are made from the program: the settings' tables, and the picture of a login."""
