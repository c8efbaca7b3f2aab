//! How a page looks.

/// Colours by role, for light and for dark; what is wide scrolls in its own box.
pub const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1d2328;--dim:#5b6670;--line:#d9dde0;--card:#fff;--bar:#2f6f9f;--own:#c77d1e;--range:#2f6f9f1c;--warn:#8a4b00;--warnbg:#fff3df}\
@media(prefers-color-scheme:dark){:root{--bg:#14181b;--fg:#e4e8eb;--dim:#98a3ad;--line:#333b42;--card:#1c2226;--bar:#6fb1e0;--own:#e6a455;--range:#6fb1e022;--warn:#f3c98b;--warnbg:#33270f}}\
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1200px;margin:0 auto;padding:16px}h1{font-size:1.5rem;margin:.5em 0 0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2em 0 0}\
.note{color:var(--dim);margin:.2em 0 1em}.warn{background:var(--warnbg);color:var(--warn);padding:10px 14px;border-radius:6px;overflow-wrap:anywhere}\
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:10px}\
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;display:flex;flex-direction:column}\
.card span{color:var(--dim);font-size:.85rem}.card b{font-size:1.25rem}.card small{color:var(--dim)}\
.bars{display:grid;grid-template-columns:minmax(90px,24%) 1fr auto;gap:0 10px;align-items:center;font-size:.85rem}\
.bars span:nth-child(3n+1){overflow:hidden;text-overflow:ellipsis;white-space:nowrap;direction:rtl;text-align:left}\
.bars svg{width:100%;height:18px;display:block}.b{fill:var(--bar)}.o{fill:var(--own)}\
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}\
table{border-collapse:collapse;font-size:.85rem;white-space:nowrap;width:100%}th,td{padding:4px 8px;text-align:left;border-bottom:1px solid var(--line);font-weight:400}\
thead th{color:var(--dim)}tbody th{position:sticky;left:0;background:var(--card);max-width:42vw;overflow:hidden;text-overflow:ellipsis}tbody tr:last-child>*{border-bottom:0}\
.n{text-align:right;font-variant-numeric:tabular-nums}\
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:12px}\
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;min-width:0}figcaption{font-weight:600;overflow-wrap:anywhere}\
.h{width:100%;height:70px;display:block;margin-top:6px;border-bottom:1px solid var(--line)}.h path{fill:var(--bar)}.r{fill:var(--range);stroke:var(--own);stroke-width:.3}\
.axis{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 8px;margin:2px 0 0;color:var(--dim);font-size:.78rem}code{font-size:.9em}";
