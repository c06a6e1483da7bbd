from airflow.sdk import dag

from airpanda.operators.jobs import PandaJobOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator


@dag(schedule=None, tags=["airpanda", "example"], doc_md="One payload, run on the grid as Alice.")
def hello_grid():
    proxy = MyProxyStageOperator(task_id="stage_proxy", payload_owner="alice")
    hello = PandaJobOperator(task_id="hello", payload_owner="alice", credential=proxy.output, panda_queue="DEMO",
                             argv=["sh", "-c", "id; date > when.txt"], outputs=["when.txt"])  # fmt: skip
    pilots = PilotSubmitOperator(task_id="send_pilots", panda_queue="DEMO", n_pilots=1)
    proxy >> [hello, pilots]


hello_grid()
