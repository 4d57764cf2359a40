"""Environment wrappers that act with, watch, or prepare observations for, a policy."""
