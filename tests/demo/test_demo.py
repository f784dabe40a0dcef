from slimrank import demo


def test_paths_lie_inside_the_package():
    folder = demo.MODEL.parent
    assert (folder / "__init__.py").is_file()
    assert demo.text("calibration") == folder / "text" / "calibration.txt"
    assert demo.text("evaluation") == folder / "text" / "evaluation.txt"
