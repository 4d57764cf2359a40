"""The planner behind the maze datasets: shortest paths over cells, followed point by point."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DatasetError

Cell = tuple[int, int]
Point = NDArray[np.float64]

WALL = 1
STEPS: tuple[Cell, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1))


class MazeMap:
    """Cells of a maze as Gymnasium-Robotics lays them out: row 0 on top, the center at (0, 0).

    Args:
        maze_map: Rows of cells; 1 is a wall, anything else is free.
        scaling: Side of a cell in m.
    """

    def __init__(self, maze_map: Sequence[Sequence[int | str]], scaling: float) -> None:
        self._free = {
            (i, j) for i, row in enumerate(maze_map) for j, cell in enumerate(row) if cell != WALL
        }
        self._rows, self._columns = len(maze_map), len(maze_map[0])
        self._scaling = scaling
        self._toward: dict[Cell, dict[Cell, Cell]] = {}

    def center(self, cell: Cell) -> Point:
        """Position of the middle of `cell` in m, shape (2,)."""
        x = (cell[1] + 0.5 - self._columns / 2) * self._scaling
        y = (self._rows / 2 - cell[0] - 0.5) * self._scaling
        return np.array([x, y])

    def cell(self, point: Point) -> Cell:
        """The free cell at `point` (m); for a point inside a wall, the nearest free cell."""
        i = int(np.floor(self._rows / 2 - point[1] / self._scaling))
        j = int(np.floor(point[0] / self._scaling + self._columns / 2))
        if (i, j) in self._free:
            return (i, j)
        return min(self._free, key=lambda c: (float(np.sum((self.center(c) - point) ** 2)), c))

    def next_cell(self, start: Cell, goal: Cell) -> Cell:
        """The neighbor of `start` on a shortest path to `goal`; `goal` itself when there already.

        Raises:
            DatasetError: if no path exists.
        """
        if goal not in self._toward:
            self._toward[goal] = self._search(goal)
        try:
            return self._toward[goal][start]
        except KeyError:
            raise DatasetError(
                f"The maze has no path from cell {start} to cell {goal}; its map must be connected."
            ) from None

    def _search(self, goal: Cell) -> dict[Cell, Cell]:
        toward, frontier = {goal: goal}, deque([goal])
        while frontier:
            cell = frontier.popleft()
            for di, dj in STEPS:
                neighbor = (cell[0] + di, cell[1] + dj)
                if neighbor in self._free and neighbor not in toward:
                    toward[neighbor] = cell
                    frontier.append(neighbor)
        return toward


class WaypointFollower:
    """Turns (position, goal) into the next point to steer for.

    The first waypoint of a path is the middle of a cell, later ones are displaced by `displace`,
    and the last one is the goal itself. A goal that moves by more than 1 mm starts a new path.

    Args:
        maze: The map.
        reach: Distance in m at which a waypoint counts as visited.
        shift: Range (low, high) in m of the uniform displacement of later waypoints per axis.
        rng: Source of the displacements.
    """

    def __init__(
        self, maze: MazeMap, reach: float, shift: tuple[float, float], rng: np.random.Generator
    ) -> None:
        self._maze, self._reach, self._shift, self._rng = maze, reach, shift, rng
        self._goal: Point | None = None
        self._goal_cell: Cell = (0, 0)
        self._target_cell: Cell = (0, 0)
        self._target: Point = np.zeros(2)

    def target(self, position: Point, goal: Point) -> Point:
        """Where to steer now, in m, shape (2,); `position` and `goal` likewise."""
        if self._goal is None or np.abs(goal - self._goal).max() > 1e-3:
            self._goal, self._goal_cell = np.array(goal), self._maze.cell(goal)
            self._steer_for(self._maze.next_cell(self._maze.cell(position), self._goal_cell), False)
        offset = self._target - position
        if (
            self._target_cell != self._goal_cell
            and offset[0] * offset[0] + offset[1] * offset[1] <= self._reach * self._reach
        ):
            self._steer_for(self._maze.next_cell(self._target_cell, self._goal_cell), True)
        return self._target

    def _steer_for(self, cell: Cell, displaced: bool) -> None:
        self._target_cell = cell
        if cell == self._goal_cell:
            assert self._goal is not None
            self._target = self._goal
        else:
            self._target = self._maze.center(cell)
            if displaced:
                self._target = self._target + self._rng.uniform(*self._shift, size=2)
