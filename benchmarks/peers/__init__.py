"""One worker per package: the same work through its own public interface."""
