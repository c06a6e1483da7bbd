"""What the demonstration needs besides the product: a test PKI and the world around it.

Nothing here is for production: the certificate authority's key lies unprotected next to its certificates.
"""
