for (const chart of document.querySelectorAll('.chart')) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector('svg');
  const cursor = svg.querySelector('.cursor'), tip = document.createElement('div');
  tip.className = 'tip';
  chart.append(tip);
  const hide = () => { cursor.style.visibility = tip.style.visibility = 'hidden'; };
  const show = event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const near = data.series.map(s => s.points.reduce(
      (best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
    const at = near.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best);
    cursor.setAttribute('x1', at[0]); cursor.setAttribute('x2', at[0]);
    tip.textContent = data.x + ' ' + at[2].toLocaleString('en');
    near.forEach((p, i) => {
      if (Math.abs(p[0] - at[0]) > 6) return;
      const row = document.createElement('span');
      row.className = 'key s' + data.series[i].color;
      row.textContent = data.series[i].name + ' ' + p[3];
      tip.append(row);
    });
    const left = at[0] / scale + 12, room = chart.clientWidth;
    const place = left + 12 + tip.offsetWidth < room ? left + 12 : left - tip.offsetWidth - 12;
    tip.style.left = Math.max(4, place) + 'px';
    tip.style.top = chart.clientHeight * .3 + 'px';
    cursor.style.visibility = tip.style.visibility = 'visible';
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', hide);
}
for (const input of document.querySelectorAll('.slide input')) {
  const show = () => input.parentElement.style.setProperty('--at', input.value + '%');
  input.addEventListener('input', show);
  show();
}
for (const picker of document.querySelectorAll('.picker')) {
  const images = [...picker.querySelectorAll('img')], sources = images.map(image => image.src);
  picker.querySelectorAll('select').forEach((select, side) => {
    const show = () => { images[side].src = sources[select.value]; };
    select.addEventListener('change', show);
    show();
  });
}
for (const button of document.querySelectorAll('.model .whole')) {
  const model = button.parentElement;
  const fill = full => {
    model.classList.toggle('full', full);
    document.body.style.overflow = full ? 'hidden' : '';
    button.setAttribute('aria-label', full ? 'back to the page' : 'fill the window');
    button.textContent = full ? '\u2715' : '\u2922';
  };
  button.addEventListener('click', () => fill(!model.classList.contains('full')));
  model.addEventListener('keydown', event => { if (event.key === 'Escape') fill(false); });
}
