"""A content-addressed snapshot store for model checkpoints and backups. The public interface, and nothing else."""
