from airflow.sdk import Param, dag

from airpanda.operators.jobs import PandaJobOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator

WORDS = """
Alice's payload counts the lines of a file that lies in a storage, and leaves the number there. Both files move with her
proxy and under her account; the pilot never opens them. What is known of the input's size and checksums may be said
beside `source` (`size`, `adler32`, `sha256`): then nothing else is taken for it.
"""


@dag(
    schedule=None,
    tags=["airpanda", "example"],
    doc_md=WORDS,
    params={
        "source": Param(
            "https://se.example.org/alice/data.txt",
            type="string",
            pattern="^(https|davs|root|file)://",
            title="Input",
            description="where the file lies: https, davs, root or file",
        ),
        "destination": Param(
            "davs://se.example.org/alice/counts/",
            type="string",
            pattern="^(https|davs|root|file)://",
            title="Output",
            description="where the number goes; a folder where it ends in /",
        ),
    },
)
def files_at_storage():
    proxy = MyProxyStageOperator(task_id="stage_proxy", payload_owner="alice")
    count = PandaJobOperator(
        task_id="count",
        payload_owner="alice",
        credential=proxy.output,
        panda_queue="DEMO",
        argv=["sh", "-c", "wc -l < data.txt > lines.txt"],
        inputs=[{"lfn": "data.txt", "source": "{{ params.source }}"}],
        outputs=[{"lfn": "lines.txt", "destination": "{{ params.destination }}"}],
    )
    pilots = PilotSubmitOperator(task_id="send_pilots", panda_queue="DEMO", n_pilots=1)
    proxy >> [count, pilots]


files_at_storage()
