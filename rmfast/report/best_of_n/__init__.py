"""The page and plots of best-of-N: proxy reward against gold over N."""
