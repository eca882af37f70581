"""How `pocket` is made: the world that is its teacher, and one script for each of its networks."""
