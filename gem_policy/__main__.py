"""``python -m gem_policy`` is the command line."""

from gem_policy.cli import main

if __name__ == "__main__":
    main()
