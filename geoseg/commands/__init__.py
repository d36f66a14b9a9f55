"""The commands, a module each: imported when one is asked for, and light until its words are understood."""
