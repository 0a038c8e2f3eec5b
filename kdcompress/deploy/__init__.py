"""What ships: stripped, written, proved."""
