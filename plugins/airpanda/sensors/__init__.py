"""Waiting for what people do outside Airflow. Sensors ask the dispatcher; they hold no database credentials."""
