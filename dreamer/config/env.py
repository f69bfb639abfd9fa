"""The environments: one section for every suite.

A step is one decision of the agent in one environment; action repeat is not counted.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from dreamer.config.section import INT32, Count, Fraction, NonNegative, Section, Whole

WORKERS = ("workers", "restarts", "timeout", "max_memory")  # keys on how environments run


class EnvBase(Section):
    """Keys of every suite."""

    task: str = Field(description="name of the task within the suite")
    num_envs: Count = Field(1, description="environments stepped together for training")
    first: Whole = Field(
        0, description="number of the first environment, from which they are seeded"
    )
    workers: Literal["auto", "serial", "process"] = Field(
        "auto",
        description="where environments run: in this process, one process each, or the faster one",
    )
    restarts: Whole = Field(
        10,
        description="failures per run after which an environment is restarted: exceptions, values "
        "outside of its spaces, and with workers=process crashes and hangs",
    )
    timeout: Whole = Field(
        300,
        description="seconds that a step or reset may take with workers=process; 0 is no limit",
    )
    max_memory: NonNegative = Field(
        0.0,
        description="GiB that a worker process and its children may use; above, the environment is "
        "restarted after its episode; 0 is no limit",
    )
    repeat: Count = Field(1, description="raw environment steps per agent step, rewards summed")
    time_limit: Whole = Field(
        0, description="agent steps until truncation; 0 keeps the environment's own limit"
    )
    image_size: tuple[Count, Count] = Field(
        (64, 64), description="height and width of images, pixels"
    )

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self.task


class GymnasiumEnv(EnvBase):
    """Any registered gymnasium id, or the environment that a function returns."""

    suite: Literal["gymnasium"] = "gymnasium"
    task: str = Field(
        "CartPole-v1",
        description="gymnasium id; package:id imports the package first; env.id is another name",
    )
    entry_point: str = Field(
        "",
        description="package.module:function that returns a gymnasium or dm_env environment, "
        "instead of an id",
    )
    kwargs: dict[str, Any] = Field(
        {}, description="arguments of the id or function, written {size: 5, walls: true}"
    )
    image_size: tuple[Count, Count] | None = Field(  # type: ignore[assignment]
        None,
        description="height and width that images are resized to, pixels; null keeps their own, "
        "and renders 64x64",
    )
    pixels: bool = Field(
        False, description="learn from the rendered frame instead of the observation"
    )
    check_bounds: bool = Field(
        True, description="an observation outside the bounds of its space is a failure"
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self.entry_point or self.task


class AtariEnv(EnvBase):
    """The Arcade Learning Environment as published (Machado et al. 2018; Hafner et al. 2025)."""

    suite: Literal["atari"] = "atari"
    task: str = Field("pong", description="game in snake case")
    repeat: Count = Field(4, description="raw frames per agent step, rewards summed")
    image_size: tuple[Count, Count] = Field(
        (96, 96), description="height and width of images, pixels"
    )
    time_limit: Whole = Field(
        27_000, description="agent steps until truncation; as published, 108,000 raw frames"
    )
    sticky: Fraction = Field(
        0.25, description="probability that the emulator repeats the last action"
    )
    gray: bool = Field(True, description="one luminance channel instead of RGB")
    actions: Literal["all", "needed"] = Field(
        "all", description="the 18 legal actions or the game's minimal set"
    )
    noops: Whole = Field(30, description="most random no-op frames after a reset")
    lives: Literal["unused", "discount", "reset"] = Field(
        "unused",
        description="effect of losing a life: none, terminal flag, or end of the episode",
    )
    pooling: Count = Field(2, description="last raw frames of a step max-pooled into the image")
    clip_reward: bool = Field(False, description="sign of the reward instead of the reward")
    backend: Literal["emulator", "vector"] = Field(
        "emulator",
        description="each game frame by frame as published, or ale_py's own AtariVectorEnv, whose "
        "images differ a little",
    )


class GymnaxEnv(EnvBase):
    """Tasks of gymnax, written in JAX."""

    suite: Literal["gymnax"] = "gymnax"
    task: str = Field("CartPole-v1", description="gymnax id")


class CraftaxEnv(EnvBase):
    """Craftax and Craftax-Classic, written in JAX."""

    suite: Literal["craftax"] = "craftax"
    task: str = Field("Craftax-Classic-Symbolic-v1", description="Craftax id")


class NavixEnv(EnvBase):
    """The grid worlds of NAVIX, written in JAX."""

    suite: Literal["navix"] = "navix"
    task: str = Field("Navix-DoorKey-5x5-v0", description="NAVIX id")
    view: Literal["symbolic", "symbolic_first_person", "rgb", "rgb_first_person"] = Field(
        "symbolic_first_person",
        description="observation: cells as classes or an image, of the whole grid or in front of "
        "the player",
    )


class BraxEnv(EnvBase):
    """The robots of Brax, written in JAX."""

    suite: Literal["brax"] = "brax"
    task: str = Field("ant", description="name of the robot")
    physics: Literal["generalized", "positional", "spring", "mjx"] = Field(
        "generalized", description="simulation: exact, or faster by springs or positions"
    )


class PlaygroundEnv(EnvBase):
    """MuJoCo Playground, written in JAX."""

    suite: Literal["playground"] = "playground"
    task: str = Field("WalkerWalk", description="name of the environment")


class JumanjiEnv(EnvBase):
    """Puzzles, packing and routing of Jumanji, written in JAX, with action masks."""

    suite: Literal["jumanji"] = "jumanji"
    task: str = Field("Snake-v1", description="Jumanji id")


class DmcEnv(EnvBase):
    """The DeepMind Control Suite, from vectors or from images."""

    suite: Literal["dmc"] = "dmc"
    task: str = Field("walker_walk", description="domain_task; ball_in_cup is called cup")
    view: Literal["proprio", "vision"] = Field(
        "proprio", description="observation: positions and velocities as vectors, or an image"
    )
    camera: Annotated[int, Field(ge=-1, le=INT32)] = Field(
        -1, description="number of the camera; -1 is the published one: 2 for quadruped, else 0"
    )


class CrafterEnv(EnvBase):
    """Crafter, an open-world survival game."""

    suite: Literal["crafter"] = "crafter"
    task: str = Field("reward", description="reward, or noreward to explore without")


class MinigridEnv(EnvBase):
    """The grid worlds of MiniGrid and BabyAI, with their missions as text."""

    suite: Literal["minigrid"] = "minigrid"
    task: str = Field("MiniGrid-DoorKey-5x5-v0", description="gymnasium id")
    view: Literal["symbolic", "symbolic_first_person", "rgb", "rgb_first_person"] = Field(
        "symbolic_first_person",
        description="observation: cells as classes or an image, of the whole grid or in front of "
        "the agent",
    )


class MemoryMazeEnv(EnvBase):
    """Memory Maze: mazes with coloured balls to find repeatedly."""

    suite: Literal["memory_maze"] = "memory_maze"
    task: str = Field("9x9", description="size of the maze, and a variant as in 9x9-ExtraObs")


class MetaworldEnv(EnvBase):
    """One task of Meta-World, with its 50 goals."""

    suite: Literal["metaworld"] = "metaworld"
    task: str = Field("reach-v3", description="name of the task")
    pixels: bool = Field(
        False, description="learn from the rendered frame instead of the observation"
    )


class VizdoomEnv(EnvBase):
    """Scenarios of ViZDoom."""

    suite: Literal["vizdoom"] = "vizdoom"
    task: str = Field("TakeCover", description="name of the scenario")


class BsuiteEnv(EnvBase):
    """The behaviour suite: small experiments that test one ability each."""

    suite: Literal["bsuite"] = "bsuite"
    task: str = Field("catch/0", description="experiment and number of its setting")


JaxEnvs = GymnaxEnv | CraftaxEnv | NavixEnv | BraxEnv | PlaygroundEnv | JumanjiEnv
HostEnvs = (
    GymnasiumEnv
    | AtariEnv
    | DmcEnv
    | CrafterEnv
    | MinigridEnv
    | MemoryMazeEnv
    | MetaworldEnv
    | VizdoomEnv
    | BsuiteEnv
)
Env = Annotated[HostEnvs | JaxEnvs, Field(discriminator="suite")]
SUITES: dict[str, type[EnvBase]] = {
    member.model_fields["suite"].default: member for member in get_args(HostEnvs | JaxEnvs)
}
