"""The toolkit for Pyramid that has apex's name on PyPI."""

raise ImportError("No module named 'pyramid_mailer'")
