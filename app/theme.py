"""The look of the page: theme and CSS; no font and no image comes from elsewhere."""

from __future__ import annotations

import gradio as gr

FONT = ("Inter", "Segoe UI", "Roboto", "Noto Sans", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("SF Mono", "Cascadia Mono", "Consolas", "DejaVu Sans Mono", "monospace")

CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { font-size: 1.9rem; letter-spacing: -0.02em; margin: 0.4rem 0 0; }
#title p, #note { color: var(--neutral-500); margin: 0; }
.dark :is(#title p, #note) { color: var(--neutral-400); }
#note { font-size: 0.9rem; }
#note [role=alert] {
  padding: 0.6rem 0.8rem; border-left: 4px solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color); font-size: 1rem;
}
#caption textarea { font-size: 1.5rem; line-height: 1.35; font-weight: 600; }
#caption textarea::placeholder { font-size: 1.05rem; font-weight: 400; }
#examples .gallery { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0.6rem; }
#examples .gallery :is(span, .container) { display: block; width: 100%; height: auto; }
#examples .gallery .container { max-width: none; max-height: none; border: 0; }
#examples img { width: 100%; height: auto; aspect-ratio: 4 / 3; object-fit: cover; }
#looks .grid-wrap { min-height: 0; max-height: none; padding: 2.6rem 0.7rem 0.7rem; }
#looks .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); padding: 0; gap: 0.7rem;
}
#looks:has(.preview) .grid-wrap { visibility: hidden; min-height: 400px; }
#looks .thumbnail-lg { aspect-ratio: auto; height: auto; box-shadow: none; }
#looks .thumbnail-lg img { height: auto; max-height: 220px; }
#looks .thumbnail-lg .caption-label {
  position: static; max-width: none; border: 0; background: none; padding: 0.2rem 0;
  text-align: center; font-size: 0.95rem; font-weight: 600;
}
:is(#note, #table) .html-container { padding: 0; }
#table table { width: 100%; border-collapse: collapse; }
#table :is(table, tr, th, td) { border: 0 !important; }
#table :is(th, td) { padding: 0.45rem 0.2rem !important; text-align: left; }
#table :is(th, td):last-child { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  #caption textarea { font-size: 1.25rem; }
  #looks .grid-container { grid-template-columns: repeat(3, 1fr); }
}
"""


def theme() -> gr.themes.Base:
    """Return a theme of calm greys, one strong colour and fonts of the visitor's system."""
    soft = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="stone",
        font=FONT,
        font_mono=MONO,
    )
    return soft.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        block_label_background_fill="*block_background_fill",
        block_label_background_fill_dark="*block_background_fill",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_label_shadow="none",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0px",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_border_width="1px",
    )
