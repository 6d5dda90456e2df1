"""Files in, points out: what was written comes back, and a damaged file says so."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ponder_zoo.data.pcd import lzf_decompress
from ponder_zoo.data.readers import read_scene
from ponder_zoo.ops.marching_cubes import vertex_normals

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])


def cloud(number: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-3, 3, (number, 3)).astype("f4"), rng.integers(2, 256, (number, 3)).astype("u1")


def write_ply(file: Path, coord: np.ndarray, color: np.ndarray, order: str, faces: list | None = None) -> bytes:
    """A face element before the vertices, to see that it is skipped; and one after them where faces are given."""
    kind = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = f"ply\nformat {kind} 1.0\ncomment made here\nelement other 2\nproperty list uchar int things\n"
    head += f"element vertex {len(coord)}\n" + "".join(f"property float {a}\n" for a in "xyz")
    head += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    if faces is not None:
        head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    data = (head + "end_header\n").encode()
    lists = [[7, 8, 9], [5]]
    if order == "":
        rows = [" ".join(map(str, [len(v), *v])) for v in lists]
        rows += [
            " ".join([*(repr(float(x)) for x in xyz), *map(str, rgb)]) for xyz, rgb in zip(coord, color, strict=True)
        ]
        rows += [" ".join(map(str, [len(v), *v])) for v in faces or []]
        data += ("\n".join(rows) + "\n").encode()
    else:
        packed = [struct.pack(f"{order}B{len(v)}i", len(v), *v) for v in lists]
        packed += [struct.pack(f"{order}3f3B", *xyz, *rgb) for xyz, rgb in zip(coord, color, strict=True)]
        packed += [struct.pack(f"{order}B{len(v)}i", len(v), *v) for v in faces or []]
        data += b"".join(packed)
    file.write_bytes(data)
    return data


def lzf_literal(data: bytes) -> bytes:
    """The simplest valid LZF stream: literal runs only."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def write_pcd(file: Path, coord: np.ndarray, color: np.ndarray, kind: str) -> bytes:
    packed = (color.astype("u4") << np.array([16, 8, 0], "u4")).sum(1).astype("u4")
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
    head += f"WIDTH {len(coord)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(coord)}\nDATA {kind}\n"
    table = np.concatenate([coord, packed.view("f4")[:, None]], axis=1)
    if kind == "ascii":
        body = "\n".join(" ".join(np.format_float_scientific(v) for v in row) for row in table).encode() + b"\n"
    elif kind == "binary":
        body = table.tobytes()
    else:
        raw = np.ascontiguousarray(table.T).tobytes()
        body = struct.pack("<II", len(lzf_literal(raw)), len(raw)) + lzf_literal(raw)
    file.write_bytes(head.encode() + body)
    return head.encode() + body


@QUICK
@given(number=st.integers(1, 30), seed=st.integers(0, 1000), order=st.sampled_from(["", "<", ">"]))
def test_ply_comes_back(tmp_path: Path, number: int, seed: int, order: str) -> None:
    coord, color = cloud(number, seed)
    write_ply(tmp_path / "a.ply", coord, color, order)
    scene = read_scene(tmp_path / "a.ply")
    assert scene.color is not None and scene.normal is None
    np.testing.assert_array_equal(scene.coord, coord)
    np.testing.assert_array_equal(scene.color, color)


@QUICK
@given(
    number=st.integers(1, 30),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["ascii", "binary", "binary_compressed"]),
)
def test_pcd_comes_back(tmp_path: Path, number: int, seed: int, kind: str) -> None:
    coord, color = cloud(number, seed)
    write_pcd(tmp_path / "a.pcd", coord, color, kind)
    scene = read_scene(tmp_path / "a.pcd")
    assert scene.color is not None
    np.testing.assert_array_equal(scene.coord, coord)
    np.testing.assert_array_equal(scene.color, color)


@pytest.mark.parametrize("order", ["", "<", ">"])
def test_faces_of_any_size_give_normals(tmp_path: Path, order: str) -> None:
    coord = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "f4")
    for faces in ([[0, 1, 2, 3]], [[0, 1, 2], [0, 2, 3]], [[0, 1, 2], [0, 1, 2, 3]]):
        write_ply(tmp_path / "a.ply", coord, cloud()[1], order, faces)
        normal = read_scene(tmp_path / "a.ply").normal
        np.testing.assert_allclose(normal, np.tile([0, 0, 1.0], (4, 1)))


def test_normals_of_a_sphere_point_outwards() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=3)
    normal = vertex_normals(np.asarray(sphere.vertices), np.asarray(sphere.faces))
    assert ((normal * sphere.vertices).sum(1) > 0.999).all()


@pytest.mark.parametrize("order", ["", "<", ">"])
def test_a_ply_cut_anywhere_is_refused(tmp_path: Path, order: str) -> None:
    coord, color = cloud()
    data = write_ply(tmp_path / "a.ply", coord, color, order, TRIANGLES.tolist())
    last = len(data.rstrip()) - 1 if order == "" else len(data)  # in ascii, the last word may lose digits unseen
    for end in range(last):
        (tmp_path / "b.ply").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"expected"):
            read_scene(tmp_path / "b.ply")


@pytest.mark.parametrize("kind", ["binary", "binary_compressed"])
def test_a_pcd_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    data = write_pcd(tmp_path / "a.pcd", *cloud(), kind)
    for end in range(len(data)):
        (tmp_path / "b.pcd").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"expected"):
            read_scene(tmp_path / "b.pcd")


def test_lzf_copies_what_it_is_still_writing() -> None:
    assert lzf_decompress(b"\x01ab" + bytes([(7 << 5), 3, 1]), 2 + 12) == b"ab" * 7
    with pytest.raises(IndexError):
        lzf_decompress(b"\x00a" + bytes([32, 5]), 4)


@pytest.mark.parametrize(
    ("width", "fields"),
    [(3, set()), (4, {"intensity"}), (6, {"color"}), (9, {"color", "normal"})],
)
def test_npy_columns(tmp_path: Path, width: int, fields: set[str]) -> None:
    coord, color = cloud(20)
    normal = coord / np.linalg.norm(coord, axis=1, keepdims=True)
    table = np.concatenate([coord, color, normal], axis=1)[:, :width]
    np.save(tmp_path / "a.npy", table)
    scene = read_scene(tmp_path / "a.npy")
    assert {f for f in ("color", "normal", "intensity") if getattr(scene, f) is not None} == fields
    np.save(tmp_path / "a.npy", np.concatenate([coord, normal], axis=1))
    assert read_scene(tmp_path / "a.npy").normal is not None


def test_npz_names_and_colours_of_both_ranges(tmp_path: Path) -> None:
    coord, color = cloud(20)
    np.savez(tmp_path / "a.npz", xyz=coord, rgb=color / 255, boxes=np.zeros((2, 7)))
    scene = read_scene(tmp_path / "a.npz")
    np.testing.assert_allclose(scene.color, color, atol=1e-4)  # type: ignore[arg-type]
    np.savez(tmp_path / "b.npz", positions=coord)
    with pytest.raises(ValueError, match=r"expected an array 'coord'"):
        read_scene(tmp_path / "b.npz")
    data = (tmp_path / "a.npz").read_bytes()
    for end in range(0, len(data), 37):
        (tmp_path / "c.npz").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"expected"):
            read_scene(tmp_path / "c.npz")


def test_bin_of_kitti_and_of_nuscenes(tmp_path: Path) -> None:
    rows = np.abs(cloud(21)[0])
    table = np.concatenate([rows, rows[:, :1] * 0 + 0.5, rows[:, :1] * 0 - 1], axis=1)  # x y z intensity ring
    table[:, :4].tofile(tmp_path / "a.bin")
    table.tofile(tmp_path / "a.pcd.bin")
    for name in ("a.bin", "a.pcd.bin"):
        np.testing.assert_array_equal(read_scene(tmp_path / name).coord, rows)
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-3])
    with pytest.raises(ValueError, match="bin_columns"):
        read_scene(tmp_path / "a.bin")
    table[:20].tofile(tmp_path / "b.bin")  # divisible by both widths
    with pytest.raises(ValueError, match="bin_columns"):
        read_scene(tmp_path / "b.bin")


@pytest.mark.parametrize("suffix", [".obj", ".glb", ".stl", ".off"])
def test_meshes_give_vertices_and_normals(tmp_path: Path, suffix: str) -> None:
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / f"a{suffix}")
    scene = read_scene(tmp_path / f"a{suffix}")
    assert scene.normal is not None
    np.testing.assert_allclose(np.linalg.norm(scene.coord, axis=1), 1, atol=1e-4)
    assert ((scene.normal * scene.coord).sum(1) > 0.9).all()


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    coord, _ = cloud(50)
    with pytest.raises(FileNotFoundError, match="expected a file"):
        read_scene(tmp_path / "none.ply")
    (tmp_path / "a.xyz").write_text("1 2 3")
    with pytest.raises(ValueError, match="expected one of"):
        read_scene(tmp_path / "a.xyz")
    np.save(tmp_path / "mm.npy", coord * 1000)
    with pytest.raises(ValueError, match="millimetres"):
        read_scene(tmp_path / "mm.npy")
    np.testing.assert_allclose(read_scene(tmp_path / "mm.npy", unit=0.001).coord, coord, atol=1e-5)
    np.save(tmp_path / "far.npy", coord + np.array([4e5, 5e6, 0.0]))
    with pytest.raises(ValueError, match="recenter=True"):
        read_scene(tmp_path / "far.npy")
    near = read_scene(tmp_path / "far.npy", recenter=True).coord
    np.testing.assert_allclose(near - near[0], coord - coord[0], atol=1e-5)
    coord[[3, 7]] = np.nan
    np.save(tmp_path / "nan.npy", coord)
    with pytest.raises(ValueError, match=r"2 of 50 .*row 3.*drop_invalid"):
        read_scene(tmp_path / "nan.npy")
    assert len(read_scene(tmp_path / "nan.npy", drop_invalid=True)) == 48
    (tmp_path / "b.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(ValueError, match=r"expected the columns x, y and z; got \['x'\]"):
        read_scene(tmp_path / "b.ply")


def test_las_without_laspy_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.las").write_bytes(b"LASF")
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(ImportError, match=r"pip install 'laspy\[lazrs\]'"):
        read_scene(tmp_path / "a.las")


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_comes_back_and_its_offset_is_noticed(tmp_path: Path, suffix: str) -> None:
    laspy = pytest.importorskip("laspy", reason="laspy is not installed: pip install 'laspy[lazrs]'")
    coord, color = cloud(100)
    las = laspy.create(point_format=2, file_version="1.2")
    las.header.offsets, las.header.scales = [4e5, 5e6, 0], [0.001] * 3
    las.x, las.y, las.z = (coord.astype("f8") + np.array([4e5, 5e6, 0])).T
    las.red, las.green, las.blue = color.astype("u2").T * 257
    las.write(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match="recenter=True"):
        read_scene(tmp_path / f"a{suffix}")
    scene = read_scene(tmp_path / f"a{suffix}", recenter=True)
    np.testing.assert_allclose(scene.coord - scene.coord[0], coord - coord[0], atol=2.1e-3)
    np.testing.assert_allclose(scene.color, color, atol=0.01)  # type: ignore[arg-type]
    (tmp_path / f"b{suffix}").write_bytes((tmp_path / f"a{suffix}").read_bytes()[:150])
    with pytest.raises(ValueError, match="expected a readable LAS"):
        read_scene(tmp_path / f"b{suffix}")


def test_real_files_are_read(shared_dir: Path) -> None:
    mesh = read_scene(shared_dir / "data/indoor/scannet_mesh_scene0470_00/scene0470_00_vh_clean_2.ply")
    assert mesh.coord.shape == (67465, 3) and mesh.color is not None and mesh.normal is not None
    floor = mesh.coord[:, 2] < np.percentile(mesh.coord[:, 2], 3)
    assert np.median(mesh.normal[floor, 2]) > 0.9
    kinect = read_scene(shared_dir / "data/indoor/sunrgbd_000017/points.npz")
    assert kinect.coord.shape == (50000, 3) and kinect.color is not None and kinect.color.max() == 255
    lidar = read_scene(shared_dir / "data/outdoor/kitti_000008/velodyne_reduced.bin")
    assert lidar.coord.shape == (17238, 3) and lidar.intensity is not None and 0.9 < lidar.intensity.max() <= 1
