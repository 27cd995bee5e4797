"""What tells how good an architecture is: tables, proxies, training; and what runs them, here or in other processes."""
