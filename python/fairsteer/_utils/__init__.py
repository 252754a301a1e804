"""What several rooms share and no user enters."""
