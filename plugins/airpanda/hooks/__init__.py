"""How Airflow's workers and triggerers reach the dispatcher. They hold no database credentials."""
