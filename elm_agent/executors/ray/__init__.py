"""Workers as actors of a Ray cluster: the one place that imports ray. The only queue is the one in the database."""

from elm_agent.errors import SettingsError

try:
    from elm_agent.executors.ray.crew import ActorState, ActorStatus
    from elm_agent.executors.ray.runner import RayRunner, RayStatus
except ModuleNotFoundError as error:
    if error.name != "ray":
        raise
    raise SettingsError("worker.mode 'ray' needs Ray: run `pip install 'elm-agent[ray]'`") from None

__all__ = ["ActorState", "ActorStatus", "RayRunner", "RayStatus"]
