import numpy as np
from gymnasium import spaces

from dreamer.envs.episodes import allocate_rows, read_row, view_rows, write_row


def test_rows_hold_every_kind_of_observation_in_its_own_type():
    space = spaces.Dict(
        {
            "half": spaces.Box(0, 1, (2,), np.float16),
            "none": spaces.Box(0, 1, (0,)),
            "in": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]),
        }
    )
    space.seed(0)
    seen = [space.sample() for _ in range(3)]
    found = view_rows(space, 3, allocate_rows(space, 3, bytearray))
    for i in (0, 2):
        write_row(found, i, seen[i])
        one = read_row(found, i)
        np.testing.assert_array_equal(one["half"], seen[i]["half"])
        assert one["half"].dtype == np.float16
        assert one["in"][0] == seen[i]["in"][0]
        np.testing.assert_array_equal(one["in"][1], seen[i]["in"][1])
    assert found["half"][1].tolist() == [0, 0]
