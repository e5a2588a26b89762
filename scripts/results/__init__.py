"""Tables and numbers of the documentation, as the committed results give them."""
