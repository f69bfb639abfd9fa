import numpy as np
from gymnasium import spaces

from dreamer.envs import slots


def test_slots_hold_every_kind_of_observation_in_its_own_type():
    space = spaces.Dict(
        {
            "half": spaces.Box(0, 1, (2,), np.float16),
            "none": spaces.Box(0, 1, (0,)),
            "in": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]),
        }
    )
    space.seed(0)
    seen = [space.sample() for _ in range(3)]
    found = slots.view(space, 3, slots.allocate(space, 3, bytearray))
    for i in (0, 2):
        slots.write(found, i, seen[i])
        one = slots.read(found, i)
        np.testing.assert_array_equal(one["half"], seen[i]["half"])
        assert one["half"].dtype == np.float16
        assert one["in"][0] == seen[i]["in"][0]
        np.testing.assert_array_equal(one["in"][1], seen[i]["in"][1])
    assert found["half"][1].tolist() == [0, 0]
