// Draws one dashboard of json/, as the address says: ?board=UID&prometheus=HOST:PORT&seconds=180
import { createTheme } from "@grafana/data";
import { GlobalStyles, PanelChrome, ThemeContext } from "@grafana/ui";
import React from "react";
import { createRoot } from "react-dom/client";

import { Drawn } from "./panels.jsx";
import { exemplars, series } from "./query.js";

const asked = new URLSearchParams(location.search);
const WIDTH = 1440, CELL = 38, GAP = 8, STEP = 15;

async function filled(panel, from, to) {
  const step = panel.type === "heatmap" ? STEP : 1;
  const address = asked.get("prometheus");
  const found = (await Promise.all(panel.targets.map((target) => series(address, target, from, to, step)))).flat();
  const single = panel.targets.find(({ exemplar, expr }) => exemplar && /\w+_bucket/.test(expr));
  const points = single && panel.type === "heatmap" ? await exemplars(address, /\w+_bucket/.exec(single.expr)[0], from, to) : [];
  return { panel, found, points, from, to, step };
}

function Board({ board, panels, theme }) {
  const unit = WIDTH / 24;
  const rows = Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ width: WIDTH, padding: GAP, background: theme.colors.background.canvas, color: theme.colors.text.primary }}>
        <h3 style={{ margin: "4px 0 10px", fontSize: 20 }}>{board.title}</h3>
        <div style={{ position: "relative", height: rows * CELL }}>
          {panels.map((each) => {
            const { x, y, w, h } = each.panel.gridPos;
            return (
              <div key={each.panel.id} style={{ position: "absolute", left: x * unit, top: y * CELL }}>
                <PanelChrome title={each.panel.title || undefined} hoverHeader={!each.panel.title} width={w * unit - GAP} height={h * CELL - GAP}>
                  {(width, height) => <Drawn {...each} theme={theme} width={width} height={height} />}
                </PanelChrome>
              </div>
            );
          })}
        </div>
        <div style={{ fontSize: 12, opacity: 0.7 }}>Drawn with Grafana's UI components; heatmap cells by etameter.</div>
      </div>
    </ThemeContext.Provider>
  );
}

const board = await (await fetch(`json/${asked.get("board")}.json`)).json();
const to = Math.floor(Date.now() / 1000 / STEP) * STEP, from = to - Number(asked.get("seconds"));
const panels = await Promise.all(board.panels.map((panel) => filled(panel, from, to)));
const theme = createTheme({ colors: { mode: "dark" } });
createRoot(document.getElementById("root")).render(<Board {...{ board, panels, theme }} />);
document.body.dataset.filled = "true";
