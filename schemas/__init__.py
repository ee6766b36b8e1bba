"""What is written down: job specs, plans, receipts, cards, events. Imports none of the other packages."""
