"""The sandbox: untrusted programs in processes of their own, what they are kept from, and what came of them."""
