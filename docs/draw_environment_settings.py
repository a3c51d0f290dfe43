"""Script that draws docs/images/environment-settings.png: one start of a task with each setting of MetaWorld.

python docs/draw_environment_settings.py
"""

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rocket_hf.sims.suites import make_environment

FILE = Path(__file__).parent / "images" / "environment-settings.png"
TASK, SEED, IMAGE_SIZE, COLUMNS = "button-press-topdown-v3", 2, 192, 5
PANELS = [
    ("metaworld", "corner2"),
    ("metaworld:heights=0.12", "corner2"),
    ("metaworld:camera=fixed(20,0,0)", "corner2"),
    ("metaworld:camera=random(20,10,0.1)", "corner2"),
    ("metaworld", "gripperPOV"),
    ("metaworld:inputs=xyz", "corner2_xyz"),
    ("metaworld:inputs=rays", "corner2_ray_direction"),
    ("metaworld:inputs=rays", "corner2_ray_moment"),
    ("metaworld:inputs=depth", "corner2_gray_depth"),
    ("metaworld:inputs=dummy", "corner2_dummy"),
]


def main() -> None:
    rows = len(PANELS) // COLUMNS
    figure = Figure(figsize=(1.9 * COLUMNS, 2.3 * rows), layout="constrained", dpi=110)
    for axes, (name, camera) in zip(figure.subplots(rows, COLUMNS).ravel(), PANELS, strict=True):
        environment = make_environment(name, TASK, IMAGE_SIZE)
        environment.reset(SEED)
        axes.imshow(environment.observe().images[camera], vmin=0, vmax=255)
        environment.close()
        setting = name.partition(":")[2] or "no setting"
        axes.set_title(f"{setting}\n{camera}", fontsize=8)
        axes.set_axis_off()
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    Image.open(png).convert("RGB").save(FILE, "PNG", optimize=True)


if __name__ == "__main__":
    main()
