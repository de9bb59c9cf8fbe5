/* Regions that scroll, and that show it. */

import { html } from "./drawing.js";

/** `content` in a region that scrolls by finger, wheel and keyboard. Shadows lie at edges behind which there is more,
 * and `hint` stands below as long as a part is hidden. */
export function scrollable(content, label, hint) {
  const room = html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, content);
  const frame = html("div", { class: "scroller" }, room);
  const more = html("p", { class: "note", hidden: true }, hint);
  const look = () => {
    const right = room.scrollWidth - room.clientWidth - room.scrollLeft;
    const below = room.scrollHeight - room.clientHeight - room.scrollTop;
    frame.classList.toggle("more-right", right > 1);
    frame.classList.toggle("more-below", below > 1);
    more.hidden = room.scrollWidth <= room.clientWidth + 1 && room.scrollHeight <= room.clientHeight + 1;
  };
  room.addEventListener("scroll", look, { passive: true });
  // Called once at the beginning, too.
  new ResizeObserver(look).observe(room);
  return [frame, more];
}
