"""What ``common/launch.sh`` hands to Python: flags, checks, run folders, supervision."""
